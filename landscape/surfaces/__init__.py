"""The loss along lines and over planes in weight space: one file for each kind of surface."""
