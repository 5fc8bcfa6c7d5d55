"""Old checkpoints turned into safetensors and plain JSON, bit for bit, with proof.

`objects` reads what a clean pickle holds, `encode` writes it down, `decode` reads that back, `same` compares the two,
and `conversion` does all of it and records the edge from the old file to the new ones.
"""
