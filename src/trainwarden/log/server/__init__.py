"""The log server: one tile log that many hosts append to. Needs the extra `server`."""
