"""Tables of pairs: their schema, columns and files, how they are read, checked and saved."""
