"""The spec: what the user wrote, checked, with the place of every value."""
