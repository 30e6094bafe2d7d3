"""The Models pages: routes, what is asked of Airflow, templates. Not a plugin file itself (see ``.airflowignore``)."""
