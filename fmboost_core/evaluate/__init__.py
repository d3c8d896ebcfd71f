"""How good a lifted picture is: metrics, the judge, the table and the sheet to look at."""
