"""Passes on plates, which are samples of a site and rows of the data: given sites that ask for samples, they say
which nodes carry which plate, which plates are one, and where each is reduced.

They may import what all passes may.
"""
