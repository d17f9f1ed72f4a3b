"""What the product costs, as multiples of floors and peers that are measured in the same run: `make bench`.

`measure` has the clocks, `load` the callers, `callbacks` the requests and the check of what came of them; rows are made
in a module for each kind of cost, and `report` prints them. Nothing here is a test: figures are for people.
"""
