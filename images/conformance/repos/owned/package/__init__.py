NAME = "owned"
