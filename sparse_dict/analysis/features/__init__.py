"""Features with the text that they are active on: which, where, and the page that shows them."""
