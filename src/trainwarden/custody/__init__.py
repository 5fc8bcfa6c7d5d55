"""Custody: records of who touched what, taken in as they are (`readers`, `taking`), and the log that keeps them."""
