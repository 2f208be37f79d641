# The images of docker-compose.yaml:
#
#   light   Airflow with the pipeline, without TensorFlow and Keras: every part of Airflow, and nights on CPUs
#   train   the same with TensorFlow and Keras, for a worker that trains on CPUs
#   gpu     the same with CUDA's libraries, for a worker that trains and captions on NVIDIA's GPUs
#   mlflow  MLflow's server, which needs older packages
#
#   docker build --target light .
#
# They are installed from the locks, every file checked against its hash, and hold neither a compiler nor a secret. The
# packages of light are layers that train and gpu share; the source is the last layer, so a changed line ships it alone.
# PYTHON may name any Debian image that has `python` 3.11 to 3.13 with venv, and pip 23 or later.
ARG PYTHON=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON} AS base
LABEL org.opencontainers.image.title="Image captioning pipeline" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.licenses="Apache-2.0"
# The folders on which volumes are mounted must exist: a new volume takes over their owner.
RUN useradd --uid 50000 --gid 0 --no-create-home --home-dir /tmp airflow \
    && install --directory --owner 50000 --group 0 --mode 0750 \
        /opt/airflow /opt/airflow/logs /opt/airflow/login /opt/airflow/keras /opt/mlflow
# Without pip, which nothing needs later: the base image's own installs into it.
RUN python -m venv --without-pip /opt/venv
ENV PIP_PYTHON=/opt/venv/bin/python \
    PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

FROM base AS mlflow
COPY requirements-mlflow.txt /
RUN pip install --no-deps --require-hashes --only-binary :all: -r /requirements-mlflow.txt
USER 50000
WORKDIR /opt/mlflow
CMD ["mlflow", "server"]

FROM base AS code
WORKDIR /opt/captioning
COPY dags dags
COPY pipeline pipeline
COPY plugins plugins
COPY scripts scripts
# The file system is read-only when it runs, and without bytecode each start takes longer.
RUN python -m compileall -q .

FROM base AS light-packages
# The command line, run by the interpreter of the packages.
RUN printf '%s\n' '#!/opt/venv/bin/python' 'from pipeline.__main__ import run' 'run()' > /usr/local/bin/captioning \
    && chmod 0755 /usr/local/bin/captioning
# Without a configuration, Airflow would write one with secrets of its own. All of it is in the environment.
RUN touch /opt/airflow/airflow.cfg
ENV AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/captioning/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/captioning/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    KERAS_HOME=/opt/airflow/keras \
    PYTHONPATH=/opt/captioning
WORKDIR /opt/captioning
CMD ["airflow", "version"]
COPY requirements.txt /
RUN pip install --no-deps --require-hashes --only-binary :all: -r /requirements.txt

FROM light-packages AS java
# METEOR and Stanford's tokenizer, with which captions are scored, are Java programs.
RUN apt-get update -qq \
    && apt-get install -qq --no-install-recommends default-jre-headless \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/*

FROM java AS train-packages
COPY requirements-training.txt /
RUN pip install --no-deps --require-hashes --only-binary :all: -r /requirements-training.txt

FROM java AS gpu-packages
COPY requirements-gpu.txt /
RUN pip install --no-deps --require-hashes --only-binary :all: -r /requirements-gpu.txt

FROM train-packages AS train
COPY --from=code /opt/captioning /opt/captioning
USER 50000

FROM gpu-packages AS gpu
COPY --from=code /opt/captioning /opt/captioning
USER 50000

FROM light-packages AS light
COPY --from=code /opt/captioning /opt/captioning
USER 50000
