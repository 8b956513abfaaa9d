"""Tables, migrations and sessions: SQLite and PostgreSQL on one code path."""
