"""Everything of Airflow's that the DAGs and the API server use. The plugins folder is on Airflow's import path."""
