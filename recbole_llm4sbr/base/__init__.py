"""What every other package stands on: settings and their schema, files, errors, records, RecBole's names, Ray."""
