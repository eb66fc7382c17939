"""What a graph is to peftc: sites, edits, data flow, structural verification."""
