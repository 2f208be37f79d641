# The images of docker-compose.yaml:
#
#   cpu     Airflow with the pipeline: every part of Airflow, and the worker that computes on a CPU
#   gpu     the same with CUDA's libraries, for the worker that computes on NVIDIA's GPUs
#   mlflow  MLflow's server, which needs older packages
#
#   docker build --target cpu .
#
# They are installed from the locks, every file checked against its hash, and hold neither a compiler nor a secret.
ARG PYTHON=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON} AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

FROM packages AS cpu-packages
COPY requirements.txt /
RUN pip install --require-hashes --only-binary :all: -r /requirements.txt

FROM cpu-packages AS gpu-packages
COPY requirements-gpu.txt /
RUN pip install --require-hashes --only-binary :all: -r /requirements.txt -r /requirements-gpu.txt

FROM packages AS mlflow-packages
COPY requirements-mlflow.txt /
RUN pip install --require-hashes --only-binary :all: -r /requirements-mlflow.txt

FROM ${PYTHON} AS base
# The folders on which volumes are mounted must exist: a new volume takes over their owner.
RUN useradd --uid 50000 --gid 0 --no-create-home --home-dir /tmp airflow \
    && install --directory --owner 50000 --group 0 --mode 0750 \
        /opt/airflow /opt/airflow/logs /opt/airflow/login /opt/airflow/keras /opt/mlflow
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

FROM base AS mlflow
COPY --from=mlflow-packages /opt/venv /opt/venv
USER 50000
WORKDIR /opt/mlflow
CMD ["mlflow", "server"]

FROM base AS airflow
# Without a configuration, Airflow would write one with secrets of its own. All of it is in the environment.
RUN touch /opt/airflow/airflow.cfg
ENV AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/captioning/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/captioning/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    KERAS_HOME=/opt/airflow/keras \
    PYTHONPATH=/opt/captioning
WORKDIR /opt/captioning
COPY . .
# The file system is read-only when it runs, and without bytecode each start takes longer.
RUN python -m compileall -q .
# The command line, run by the interpreter of the packages.
RUN printf '%s\n' '#!/opt/venv/bin/python' 'from pipeline.cli import main' 'main()' > /usr/local/bin/captioning \
    && chmod 0755 /usr/local/bin/captioning
USER 50000
CMD ["airflow", "version"]

FROM airflow AS gpu
COPY --from=gpu-packages /opt/venv /opt/venv

FROM airflow AS cpu
COPY --from=cpu-packages /opt/venv /opt/venv
