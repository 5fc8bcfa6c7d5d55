"""Pickle streams, read without running them: `machine` follows the instructions, `allowed` says what they may name."""
