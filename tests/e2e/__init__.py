"""The whole path on the real kernel: real pods, the real daemon, real clients; what the issue calls "it works"."""
