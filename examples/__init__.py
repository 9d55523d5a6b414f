"""The three tasks of Niculae and Blondel (2017), with the attention mapping as one word of the command line."""
