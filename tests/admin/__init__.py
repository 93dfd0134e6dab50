"""The admin API: its parts alone, and all of it against the running daemon."""
