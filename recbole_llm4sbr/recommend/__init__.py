"""What a person does with a trained model: recommendations for sessions that nobody has seen."""
