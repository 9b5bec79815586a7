"""Every file read or written: schemas, readers, writers, and the data that ships with the product."""
