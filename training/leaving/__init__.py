"""A trained model on its way out of the house: written in another form, and sent to a hub."""
