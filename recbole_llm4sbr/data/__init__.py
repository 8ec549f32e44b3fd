"""Sessions from click logs, and the atomic files that hold them."""
