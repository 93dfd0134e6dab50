"""Real load on a whole node while faults strike, and an honest count of what that cost (`python -m chaos`)."""
