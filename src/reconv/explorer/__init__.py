"""The web page on which every parameter of every kind of convolution can be moved. `app.py` serves it."""
