"""Coverage-guided fuzzing of everything that reads octets or texts of others (`python -m fuzz`)."""
