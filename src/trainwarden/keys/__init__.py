"""Ed25519 keys: the user's own (`signing`), and one for each actor, in a file or the system's key store (`ring`)."""

from trainwarden.keys.signing import KEY_ENV, SigningKey, key_path, verify_signature

__all__ = ["KEY_ENV", "SigningKey", "key_path", "verify_signature"]
