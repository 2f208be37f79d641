"""The web application in Airflow's API server that shows captions, nights and models, and captions uploads."""
