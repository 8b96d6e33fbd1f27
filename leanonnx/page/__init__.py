"""The page of ``compress --report``: values for each picture, a file for each, and the templates that draw them."""
