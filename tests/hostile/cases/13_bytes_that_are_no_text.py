# No newline, NUL bytes, and what is no UTF-8.
os.write(1, b"a\0b\xff\xfe\xed\xa0\x80\xf4\x90\x80\x80z")
os.write(2, b"\x80" * 10 + b"\0")
