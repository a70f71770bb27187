"""Studies: each a script with a TOML of settings that writes a table. They use the public API only."""
