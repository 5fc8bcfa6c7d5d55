"""What others can check of a clearance with their own tools: model signature, provenance, bill of materials."""
