"""What a source file's rows become: a format knows columns and makes documents of them."""
