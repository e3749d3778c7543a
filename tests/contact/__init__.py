"""The parts of `first_contact.py`: a module per step, and those that run the steps and tell what they found.

The program itself, its list of steps and the page need Python alone. What may fail is imported in a step's process.
"""
