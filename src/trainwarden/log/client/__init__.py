"""The client of a log server: ships a run's log there, and checks what the server says it kept."""
