"""What users write: `compile`, the marks in a program, plates, scans and networks.

Given functions, modules and choices of users, it checks them, so that nothing below has to, and gives objects that
look like what was given. It may import everything below; nothing but `propc` imports it.
"""
