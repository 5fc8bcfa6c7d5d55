"""A dossier: an incident as one folder that outsiders can check, in editions that hide what an audience may not see."""
