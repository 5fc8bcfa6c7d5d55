"""Sabotage on purpose, in a copy: the seams of an attack, the place where it is carried out, and how it is judged."""
