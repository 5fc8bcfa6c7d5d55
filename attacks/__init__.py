"""The catalogue of sabotage against AI training: one file a technique, listed in `catalogue.py`. Never in the wheel.

Everything here acts on a copy (`trainwarden.redteam.place.Range`) and its payloads are harmless: docs/attacks.md.
"""
