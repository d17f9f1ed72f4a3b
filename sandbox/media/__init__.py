"""Media: the files that jobs take and make, and the links that they are fetched by."""
