"""What is measured of a study, as tables and further columns of them; nothing is drawn here."""
