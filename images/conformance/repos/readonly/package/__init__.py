NAME = "readonly"
