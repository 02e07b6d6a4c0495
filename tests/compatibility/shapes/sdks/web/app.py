"""SDKs as their documentation shows them, against imitations of what they call."""

import boto3
import botocore.exceptions
import freehold
import stripe


def s3():
    return boto3.client(
        "s3",
        endpoint_url=freehold.config["UPSTREAM"],
        region_name="eu-central-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )


def with_boto3():
    client = s3()
    put = client.put_object(Bucket="shop", Key="a.txt", Body=b"hello")
    got = client.get_object(Bucket="shop", Key="a.txt")["Body"].read()
    listed = [one["Key"] for one in client.list_objects_v2(Bucket="shop")["Contents"]]
    try:
        client.get_object(Bucket="shop", Key="none")
    except botocore.exceptions.ClientError as error:
        return [put["ETag"], got, listed, error.response["Error"]["Code"]]
    return "no error"


def with_stripe():
    client = stripe.StripeClient("sk_test_a", base_addresses={"api": freehold.config["UPSTREAM"]})
    made = client.v1.customers.create(params={"email": "a@a.example"})
    try:
        client.v1.customers.retrieve("cus_none")
    except stripe.InvalidRequestError as error:
        return [made.id, made.email, str(error.code), error.http_status]
    return "no error"


def handle(request):
    return repr({"/boto3": with_boto3, "/stripe": with_stripe}[request.path]())
