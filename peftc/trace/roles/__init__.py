"""Where a method may attach: the layers of a model and the sites of their units, named by data flow."""
