"""Passes that decide which messages go where: given costs, sites and their rules, they give the routes from each cost
to each site that needs it, joined where they run together and dropped where no gradient needs them.

They may import what all passes may.
"""
