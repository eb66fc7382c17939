"""What a plan costs: counted by formulas, shown as JSON and Markdown."""
