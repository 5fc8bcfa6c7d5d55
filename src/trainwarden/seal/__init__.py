"""The approved inputs of a run, by digest: sealing them, checking them, watching them, rebuilding them."""

from trainwarden.seal.check import check_seal
from trainwarden.seal.command import LaunchCommand, parse_command
from trainwarden.seal.room import Room, Workspace, build_room, new_workspace
from trainwarden.seal.seal import read_seal, seal_command, write_seal
from trainwarden.seal.watch import FileWatch

__all__ = [
    "FileWatch",
    "LaunchCommand",
    "Room",
    "Workspace",
    "build_room",
    "check_seal",
    "new_workspace",
    "parse_command",
    "read_seal",
    "seal_command",
    "write_seal",
]
