"""The model, the boundary to graphsurgeon, editing, inference and layers."""
