"""What sources share: tables, listings and tars that are read in place, and the layouts of named releases."""
