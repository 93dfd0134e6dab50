"""The web page in a real browser: headless Chromium, driven over a pipe."""
