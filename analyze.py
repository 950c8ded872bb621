"""Stage 4: compare the dictionaries of a study and write figures, tables and a report."""

from sparse_dict.launch import script

if __name__ == "__main__":
    script.start_stage("analyze")
